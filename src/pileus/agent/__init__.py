"""The daemon on a host: makes the desired records so, and tells what is.

daemon      composition: configuration, drivers, signals
service     answers the controller on the link, says hello, reports
agent       the agent itself, which knows nothing of the wire: what may be asked, and the reconcile loop
guests      what ought to be of guests and how it comes to be; crashes: how soon a failed one is tried again
volumes     the same of volumes
records     what was told, one file each
metadata    what guests are told at 169.254.169.254
hypervisor/ network/ storage/    the ports, with a simulated driver and the real ones
"""
