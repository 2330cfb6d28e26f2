# Prints the scalars of a simple YAML mapping, and of lists one level below: key, tab, value.
{ sub(/\r$/, "") }
/^[ \t]*(#|$)/ || /^---/ { next }
/^[A-Za-z_][A-Za-z0-9_-]*:/ {
    key = $0
    sub(/:.*/, "", key)
    rest = $0
    sub(/^[^:]*:[ \t]*/, "", rest)
    if (rest ~ /^\[.*\][ \t]*$/) {
        sub(/^\[/, "", rest)
        sub(/\][ \t]*$/, "", rest)
        count = split(rest, items, /,[ \t]*/)
        for (i = 1; i <= count; i++) print key "\t" plain(items[i])
    } else print key "\t" plain(rest)
    next
}
/^[ \t]*-[ \t]/ {
    item = $0
    sub(/^[ \t]*-[ \t]+/, "", item)
    print key "\t" plain(item)
}

function plain(text) {
    if (text ~ /^"/) { sub(/^"/, "", text); sub(/"[ \t]*(#.*)?$/, "", text); gsub(/\\"/, "\"", text); return text }
    if (text ~ /^'/) { sub(/^'/, "", text); sub(/'[ \t]*(#.*)?$/, "", text); gsub(/''/, "'", text); return text }
    sub(/^#.*/, "", text)
    sub(/[ \t]+#.*$/, "", text)
    sub(/[ \t]+$/, "", text)
    return text
}
