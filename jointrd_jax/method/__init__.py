"""The method: its loss on one screen, and the networks it trains."""
