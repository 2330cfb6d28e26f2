"""What one may do with users, groups, roles, grants and tokens."""

from pileus.cloud.identity.operations.browsers import finish_sign_in
from pileus.cloud.identity.operations.factors import policy
from pileus.cloud.identity.operations.grants import grants
from pileus.cloud.identity.operations.groups import groups
from pileus.cloud.identity.operations.roles import roles
from pileus.cloud.identity.operations.signing import sign_in
from pileus.cloud.identity.operations.tokens import tokens
from pileus.cloud.identity.operations.users import users

__all__ = ["finish_sign_in", "grants", "groups", "policy", "roles", "sign_in", "tokens", "users"]
