"""The laws that hold the parts of poejax together, to hold parts of your own against.

`check_expert`, `check_unit`, `check_kernel` and `check_estimator` take a small instance of a part
and return the names of the laws that it obeys, or raise an AssertionError that names the one it
breaks. Sampling is judged by standard errors, at a level that is an argument; one key decides the
verdict.
"""

from poejax.testing._estimator import check_estimator
from poejax.testing._expert import check_expert
from poejax.testing._kernel import check_kernel
from poejax.testing._unit import check_unit

__all__ = ["check_estimator", "check_expert", "check_kernel", "check_unit"]
