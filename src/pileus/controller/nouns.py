"""Everything that the cloud knows: its nouns, its kinds of records, its workflows. A new noun is one line here."""

from typing import Any

from pileus.cloud.backups import workflows as of_backups
from pileus.cloud.backups.operations import backups
from pileus.cloud.backups.restoring import volumes
from pileus.cloud.events.audit import events
from pileus.cloud.flavors.operations import flavors
from pileus.cloud.floatingips.operations import floating_ips
from pileus.cloud.foreign.adoption import foreign_guests
from pileus.cloud.foreign.workflows import WORKFLOWS as OF_FOREIGN_GUESTS
from pileus.cloud.hosts.images import hosts
from pileus.cloud.hosts.model import INVITATIONS
from pileus.cloud.identity.model import PASSWORDS, SECOND_FACTORS, TOKEN_SECRETS
from pileus.cloud.identity.operations import grants, groups, policy, roles, tokens, users
from pileus.cloud.identityproviders.model import PROVIDER_SECRETS
from pileus.cloud.identityproviders.operations import group_mappings, identity_providers
from pileus.cloud.imageexports import workflows as of_image_exports
from pileus.cloud.imageexports.operations import image_exports
from pileus.cloud.images import workflows as of_images
from pileus.cloud.images.operations import images
from pileus.cloud.images.sharing import image_shares
from pileus.cloud.instances import workflows as of_instances
from pileus.cloud.instances.consoles import CONSOLES
from pileus.cloud.instances.model import FIRST_BOOTS, PASSWORD_CHANGES
from pileus.cloud.instances.operations import instances
from pileus.cloud.keypairs.operations import keypairs
from pileus.cloud.nat.operations import port_forwardings, snat_rules
from pileus.cloud.networks import workflows as of_networks
from pileus.cloud.networks.operations import networks, ports, routers, subnets
from pileus.cloud.networks.operations.shares import network_shares
from pileus.cloud.peerings.operations import peerings
from pileus.cloud.pools.operations import pools
from pileus.cloud.projects.operations import projects
from pileus.cloud.reservations.operations import reservations
from pileus.cloud.schedules.operations import schedules
from pileus.cloud.securitygroups.operations import security_groups, security_rules
from pileus.cloud.servergroups.operations import server_groups
from pileus.cloud.snapshots import workflows as of_snapshots
from pileus.cloud.snapshots.operations import snapshots
from pileus.cloud.storagepools.model import POOLS_ON_HOSTS, STORAGE_BACKINGS
from pileus.cloud.storagepools.operations import storage_pools
from pileus.cloud.tasks.operations import tasks
from pileus.cloud.volumes import workflows as of_volumes
from pileus.cloud.volumes.moveworkflow import move_volume
from pileus.operations.declare import Noun
from pileus.operations.idempotency import KEPT_ANSWERS
from pileus.state.kinds import Kind

NOUNS: tuple[Noun[Any], ...] = (
    instances,
    images,
    image_shares,
    image_exports,
    flavors,
    keypairs,
    volumes,
    snapshots,
    backups,
    schedules,
    networks,
    network_shares,
    subnets,
    reservations,
    routers,
    ports,
    peerings,
    security_groups,
    security_rules,
    floating_ips,
    port_forwardings,
    snat_rules,
    server_groups,
    projects,
    users,
    groups,
    roles,
    grants,
    identity_providers,
    group_mappings,
    policy,
    tokens,
    pools,
    storage_pools,
    hosts,
    foreign_guests,
    tasks,
    events,
)

WORKFLOWS = (
    *of_instances.WORKFLOWS,
    *of_volumes.WORKFLOWS,
    move_volume,
    *of_snapshots.WORKFLOWS,
    *of_backups.WORKFLOWS,
    *of_networks.WORKFLOWS,
    *of_images.WORKFLOWS,
    *of_image_exports.WORKFLOWS,
    *OF_FOREIGN_GUESTS,
)

KINDS: tuple[Kind[Any], ...] = (
    *(noun.kind for noun in NOUNS if noun is not events),
    PASSWORDS,
    SECOND_FACTORS,
    PROVIDER_SECRETS,
    TOKEN_SECRETS,
    INVITATIONS,
    FIRST_BOOTS,
    PASSWORD_CHANGES,
    CONSOLES,
    STORAGE_BACKINGS,
    POOLS_ON_HOSTS,
    KEPT_ANSWERS,
)
"""All kinds of records, those without operations of their own last."""
