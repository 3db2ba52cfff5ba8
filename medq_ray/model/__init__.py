"""The models that the loop asks, trains and embeds with."""
