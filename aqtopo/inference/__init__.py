"""Loading a run or an exported model, and forecasting with it."""
