"""What a request is brought to before it is checked: sizes and frames that the model takes."""
