"""What has to hold over all objects of an installation, beyond being well-formed."""

import re

OURS = {"tidegate-coordinator", "tidegate-worker", "tidegate-emulator"}
WORKLOADS = {"Deployment", "StatefulSet", "Job"}


def problems(objects, secrets):
    """Everything that is wrong, each with the object's name."""
    found = []
    for thing in objects:
        for problem in _about(thing, objects, secrets):
            found.append(f"{thing['kind']}/{thing['metadata']['name']}: {problem}")
    return found


def _about(thing, objects, secrets):
    if thing["kind"] == "Secret":
        yield "secrets are only referred to"
    if thing["kind"] == "ServiceAccount" and thing.get("automountServiceAccountToken") is not False:
        yield "its token is mounted unless it says otherwise"
    if thing["kind"] in WORKLOADS:
        pod = thing["spec"]["template"]["spec"]
        yield from _pod(pod)
        yield from _references(thing, pod, objects, secrets)
        if thing["kind"] != "Job":
            yield from _probes(pod)
    yield from _selected(thing, objects)


def _pod(pod):
    context = pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "may run as root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile"
    if pod.get("automountServiceAccountToken") is not False:
        yield "has a token for Kubernetes"
    for shared in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(shared):
            yield f"shares {shared}"
    for volume in pod.get("volumes", []):
        if "hostPath" in volume:
            yield f"volume {volume['name']} is the node's"
    for container in _containers(pod):
        for problem in _container(container):
            yield f"{container['name']}: {problem}"


def _container(container):
    name, _, tag = container["image"].rpartition("/")[2].partition(":")
    if not tag or tag == "latest":
        yield f"image {container['image']} has no fixed tag"
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False:
        yield "may escalate privileges"
    if context.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "keeps capabilities"
    if name in OURS and context.get("readOnlyRootFilesystem") is not True:
        yield "can write to its root"
    for kind in ("requests", "limits"):
        missing = {"cpu", "memory"} - container.get("resources", {}).get(kind, {}).keys()
        if missing:
            yield f"{kind} lack {sorted(missing)}"
    for variable in container.get("env", []):
        if looks_secret(variable["name"]) and "value" in variable and not _is_path(variable):
            yield f"{variable['name']} is written out"
        if re.search(r"://[^/@\s]+:[^/@\s]+@", variable.get("value", "")):
            yield f"{variable['name']} holds a password"


def looks_secret(name):
    """Whether a variable of this name holds something that nobody should read."""
    return bool(re.search(r"PASSWORD|TOKEN|SECRET|CREDENTIALS|BROKER__URL|LEDGER__URL|SINK__URL", name))


def _is_path(variable):
    named_files = re.search(r'file="(/[^"]+)"', variable["value"])
    return variable["value"].startswith("/") or named_files is not None


def _probes(pod):
    for container in pod["containers"]:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if probe not in container:
                yield f"{container['name']}: has no {probe}"
        ports = {port["name"] for port in container.get("ports", [])}
        for probe in (container.get(name, {}) for name in ("startupProbe", "livenessProbe", "readinessProbe")):
            asked = probe.get("httpGet") or probe.get("tcpSocket")
            if asked and asked["port"] not in ports:
                yield f"{container['name']}: a probe asks the port {asked['port']}, which it has not"


def _references(thing, pod, objects, secrets):
    namespace = thing["metadata"].get("namespace")
    config_maps = {
        other["metadata"]["name"]: other.get("data", {})
        for other in objects
        if other["kind"] == "ConfigMap" and other["metadata"].get("namespace") == namespace
    }
    accounts = {other["metadata"]["name"] for other in objects if other["kind"] == "ServiceAccount"}
    services = {other["metadata"]["name"] for other in objects if other["kind"] == "Service"}
    if pod.get("serviceAccountName") not in accounts:
        yield f"there is no service account {pod.get('serviceAccountName')}"
    if "serviceName" in thing["spec"] and thing["spec"]["serviceName"] not in services:
        yield f"there is no service {thing['spec']['serviceName']}"
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    claims = {claim["metadata"]["name"] for claim in thing["spec"].get("volumeClaimTemplates", [])}
    for volume in volumes.values():
        if "configMap" in volume and volume["configMap"]["name"] not in config_maps:
            yield f"there is no config map {volume['configMap']['name']}"
        if "secret" in volume and volume["secret"]["secretName"] not in secrets:
            yield f"there is no secret {volume['secret']['secretName']}"
    for container in _containers(pod):
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes and mount["name"] not in claims:
                yield f"{container['name']}: there is no volume {mount['name']}"
        for variable in container.get("env", []):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference and reference["key"] not in secrets.get(reference["name"], {}).get("data", {}):
                yield f"{variable['name']}: there is no secret {reference['name']} with {reference['key']}"


def _selected(thing, objects):
    """Selectors that find nothing are typing errors."""
    if thing["kind"] == "Service":
        selector, of = {"matchLabels": thing["spec"]["selector"]}, "Service"
    elif thing["kind"] in ("PodDisruptionBudget", "NetworkPolicy"):
        selector, of = thing["spec"].get("selector") or thing["spec"].get("podSelector"), thing["kind"]
    else:
        return
    pods = [other["spec"]["template"] for other in objects if other["kind"] in WORKLOADS]
    # Pods that RabbitMQ's operator makes.
    pods += [
        {"metadata": {"labels": {"app.kubernetes.io/component": "rabbitmq"}}}
        for other in objects
        if other["kind"] == "RabbitmqCluster"
    ]
    chosen = [pod for pod in pods if _matches(selector, pod["metadata"]["labels"])]
    if not chosen:
        yield "it selects no pod"
    for pod in chosen if of == "Service" else []:
        ports = {port["name"] for container in pod["spec"]["containers"] for port in container.get("ports", [])}
        for port in thing["spec"]["ports"]:
            if port["targetPort"] not in ports:
                yield f"no container has the port {port['targetPort']}"


def _matches(selector, labels):
    wanted = selector.get("matchLabels", {})
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    return all(labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", []))


def _containers(pod):
    return pod.get("initContainers", []) + pod["containers"]
