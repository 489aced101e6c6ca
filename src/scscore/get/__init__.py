"""Stored results as data frames."""

from scscore.get._funnel import funnel
from scscore.get._likelihood import likelihood
from scscore.get._posterior import posterior

__all__ = ["funnel", "likelihood", "posterior"]
