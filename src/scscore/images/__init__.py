"""Images as AnnData: a stack in ``obsm``, pixels as variables, and an encoder that is trained on them."""

from scscore.images._conv import Conv
from scscore.images._stacks import from_arrays, from_folder, stack

__all__ = ["Conv", "from_arrays", "from_folder", "stack"]
