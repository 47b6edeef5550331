"""Puppets: drawn people with exact DensePose labels, for examples, tests and training without any download.

A puppet is a skeleton in space that wears tapered capsules (`figure`), which are painted as skin, hair and clothes
(`looks`, `drawing`). It turns around, and so shows its back, about which its front may say nothing. Two seeds decide
what it looks like (`Identity`) and how it moves (`Movement`), independently.

World axes: x to the right of the picture, y up, z towards the viewer. One unit is half of the picture's shorter side.
Lengths are in these units, angles in radians, colours RGB in [0, 1]. A puppet that faces the viewer has its right hand
at the left of the picture.
"""

from mafx.puppets.drawing import draw_puppet, label_puppet
from mafx.puppets.figure import skeleton
from mafx.puppets.looks import HIDDEN, Identity
from mafx.puppets.moves import SIDES, STANDING, Limb, Movement, Pose, Stance, rotate_yaw, stance_of

__all__ = [
    "HIDDEN",
    "SIDES",
    "STANDING",
    "Identity",
    "Limb",
    "Movement",
    "Pose",
    "Stance",
    "draw_puppet",
    "label_puppet",
    "rotate_yaw",
    "skeleton",
    "stance_of",
]
