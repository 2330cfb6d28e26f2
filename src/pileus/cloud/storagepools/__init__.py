"""Storage pools: where volumes and backups are kept."""
