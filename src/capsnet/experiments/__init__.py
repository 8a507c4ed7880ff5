"""The paper's tables as named rows, the runs behind them, and the tables that come out."""
