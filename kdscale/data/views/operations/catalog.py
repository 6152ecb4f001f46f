"""Every native operation by its name in a recipe.

To add one: write its function of given parameters in `functional/`, the class that draws them in
this folder, name it here, specify its draws in `docs/views.md`.
"""

from kdscale.data.views.operations.base import Operation
from kdscale.data.views.operations.geometry import RandomCrop, RandomHorizontalFlip

OPERATIONS: dict[str, type[Operation]] = {
    "random_crop": RandomCrop,
    "random_horizontal_flip": RandomHorizontalFlip,
}
