"""The contract: what must hold of every method, model, data set and environment, whoever wrote it. The functions `check_*` hold
one to it, and say of what it breaks how to mend it.

May import `assembly` and below.
"""

from metarun.testing.contract import ContractError as ContractError
from metarun.testing.data_sets import check_dataset as check_dataset
from metarun.testing.environments import check_environment as check_environment
from metarun.testing.methods import check_method as check_method
from metarun.testing.models import check_model as check_model
