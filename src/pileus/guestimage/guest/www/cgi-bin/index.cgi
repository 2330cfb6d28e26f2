#!/bin/sh
# What the guest tells about itself, to anyone who can reach its port 80.
number() { cat "$1" 2>/dev/null || echo 0; }
comma=
addresses=
for path in /run/pileus/address.*; do
    [ -e "$path" ] || continue
    addresses="$addresses$comma\"${path##*address.}\": \"$(cat "$path")\""
    comma=", "
done
cat <<END
Content-Type: application/json
Connection: close

{
  "hostname": "$(hostname)",
  "instance_id": "$(tr -c -d 'A-Za-z0-9._-' </run/pileus/instance-id 2>/dev/null)",
  "source": "$(cat /run/pileus/source 2>/dev/null || echo none)",
  "addresses": {$addresses},
  "client": "$REMOTE_ADDR",
  "uptime_s": $(cut -d ' ' -f 1 /proc/uptime),
  "boots": $(number /srv/boots),
  "cpus": $(nproc),
  "memory_mib": $(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo),
  "data_mib": $(df -m /srv | awk 'NR == 2 {print $2}'),
  "kernel": "$(uname -r)"
}
END
