"""Arguments of a call that no other input gives: which there are and who gives them, and what values they take."""
