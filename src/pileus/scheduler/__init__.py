"""Pure placement: a view of the hosts and a demand in, a choice with its reasons out."""
