"""How far predictions are from measurements, on data that no fit has seen (docs/accuracy.md)."""
