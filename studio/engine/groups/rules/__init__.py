"""One rule an operator: what it does to axes. Importing this package registers all of them."""

import studio.engine.groups.rules.attention
import studio.engine.groups.rules.contraction
import studio.engine.groups.rules.control
import studio.engine.groups.rules.elementwise
import studio.engine.groups.rules.movement
import studio.engine.groups.rules.norms
import studio.engine.groups.rules.recurrent
import studio.engine.groups.rules.reduction  # noqa: F401 - all of these are for what they register
