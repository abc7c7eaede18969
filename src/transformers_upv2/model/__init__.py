"""The model: one flat folder, which is all that an upload to the Hub copies."""
