"""The name of the comparison that the tests of this room share."""

GROUP = "trial"
