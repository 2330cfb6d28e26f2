# Prints each scalar of a JSON document: path, tab, value. A newline inside a string becomes a blank.
{ text = text $0 "\n" }
END { at = 1; value("") }

function blank() { while (substr(text, at, 1) ~ /[ \t\r\n]/) at++ }

function value(path,    first) {
    blank()
    first = substr(text, at, 1)
    if (first == "{") members(path)
    else if (first == "[") elements(path)
    else if (first == "\"") print path "\t" string()
    else print path "\t" bare()
}

function below(path, name) { return path == "" ? name : path "/" name }

function members(path,    name) {
    at++
    for (blank(); at <= length(text) && substr(text, at, 1) != "}"; blank()) {
        if (substr(text, at, 1) == ",") { at++; continue }
        if (substr(text, at, 1) != "\"") exit 1
        name = string()
        blank()
        at++
        value(below(path, name))
    }
    at++
}

function elements(path,    count) {
    count = 0
    at++
    for (blank(); at <= length(text) && substr(text, at, 1) != "]"; blank()) {
        if (substr(text, at, 1) == ",") { at++; continue }
        value(below(path, count++))
    }
    at++
}

function string(    result, mark) {
    result = ""
    for (at++; at <= length(text) && substr(text, at, 1) != "\""; at++) {
        mark = substr(text, at, 1)
        if (mark == "\\") {
            mark = substr(text, ++at, 1)
            if (mark ~ /[nrt]/) mark = " "
            else if (mark == "u") mark = "\\u"
        }
        result = result mark
    }
    at++
    return result
}

function bare(    rest) {
    rest = substr(text, at)
    match(rest, /^[^],} \t\r\n]+/)
    if (RLENGTH < 1) exit 1
    at += RLENGTH
    return substr(rest, 1, RLENGTH)
}
