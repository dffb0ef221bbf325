"""People, bases and adapters as folders that are ready for the Hub, and load without this package."""

from xmem_utils.export.hub import export

__all__ = ["export"]
