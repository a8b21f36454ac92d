"""What a card of some size holds of a model: weights, a decode, and which settings fit. Loads no weights."""
