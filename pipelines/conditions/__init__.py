"""What a run is held to beside its prompt: masks, control models, videos, keyframes, references. Their data is in
`kinds`; the rest says, before a model is loaded, what becomes of them, and then what a call is given."""
