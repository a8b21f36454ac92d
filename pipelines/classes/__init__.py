"""Pipeline classes outside the table of families: what their code says of the call. Imports families alone."""
