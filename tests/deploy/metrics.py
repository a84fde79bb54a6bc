"""The metrics that the programs register, read from their source; and those that a query names."""

import re

from rendered import ROOT

# The exporter renders histograms as summaries: quantiles, a sum, a count.
HISTOGRAM_SUFFIXES = ("", "_sum", "_count")
# What others say. Queues one by one: /metrics/detailed of RabbitMQ 3.10 and newer.
FOREIGN = {
    "up": {"job", "instance"},
    "ALERTS": {"alertname", "alertstate", "severity"},
    "rabbitmq_alarms_memory_used_watermark": {"instance"},
    "rabbitmq_alarms_free_disk_space_watermark": {"instance"},
    "rabbitmq_detailed_queue_messages_ready": {"instance", "queue", "vhost"},
    "rabbitmq_detailed_queue_messages_unacked": {"instance", "queue", "vhost"},
    "rabbitmq_global_messages_redelivered_total": {"instance"},
}
# What Prometheus adds to every series.
TARGET_LABELS = {"instance", "job", "quantile"}


def registered():
    """Every metric of ours with the labels that it is given."""
    found = {}
    for crate in ("coordinator", "worker", "shared"):
        for path in (ROOT / crate / "src").rglob("*.rs"):
            source = path.read_text()
            for match in re.finditer(r"metrics::(counter|gauge|histogram)!\(", source):
                call = _arguments(source, match.end())
                name, *labels = re.findall(r'"([a-z_]+)"(?=\s*(?:,|=>|$))', call)
                suffixes = HISTOGRAM_SUFFIXES if match[1] == "histogram" else ("",)
                for suffix in suffixes:
                    found.setdefault(name + suffix, set()).update(re.findall(r'"([a-z_]+)"\s*=>', call))
    return found


def _arguments(source, start):
    depth, end = 1, start
    while depth:
        depth += {"(": 1, ")": -1}.get(source[end], 0)
        end += 1
    return source[start : end - 1]


def problems(query, known):
    """What a query names that does not exist."""
    found = []
    text = re.sub(r'"[^"]*"', '""', query)
    groupings = r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)"
    grouped = {label.strip() for labels in re.findall(groupings, text) for label in labels.split(",") if label.strip()}
    text = re.sub(groupings, "", text)
    named = set()
    for match in re.finditer(r"\b([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?", text):
        name, selector = match[1], match[2] or ""
        if name.startswith(("tidegate_", "rabbitmq_")) or name in FOREIGN:
            if name not in known:
                found.append(f"there is no metric {name}")
                continue
            named.add(name)
            for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector):
                if label not in known[name] | TARGET_LABELS:
                    found.append(f"{name} has no label {label}")
    if not named and not found:
        found.append(f"it names no metric: {query}")
    labels = set().union(TARGET_LABELS, *(known[name] for name in named))
    found += [f"nothing in it has the label {label}" for label in sorted(grouped - labels)]
    return found
