"""Where the cases come from: tiny twins of every class, and diffusers' own tests."""
