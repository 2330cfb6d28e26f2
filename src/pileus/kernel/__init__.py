"""What everything else stands on: ids, units, errors, clock. Standard library only."""
