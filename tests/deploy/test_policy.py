"""The rules find what they are there for: each change below breaks one of them."""

import copy
import unittest

import policy
import rendered
import schemas


def coordinator(objects):
    return next(one for one in objects if one["kind"] == "Deployment" and "coordinator" in one["metadata"]["name"])


def pod(objects):
    return coordinator(objects)["spec"]["template"]["spec"]


def container(objects):
    return pod(objects)["containers"][0]


def service(objects):
    return next(one for one in objects if one["kind"] == "Service")


BREAK = {
    "may run as root": lambda o: pod(o)["securityContext"].pop("runAsNonRoot"),
    "has no seccomp": lambda o: pod(o)["securityContext"].pop("seccompProfile"),
    "has a token": lambda o: pod(o).pop("automountServiceAccountToken"),
    "shares hostNetwork": lambda o: pod(o).update(hostNetwork=True),
    "is the node's": lambda o: pod(o)["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
    "no fixed tag": lambda o: container(o).update(image="example.org:5000/tidegate-coordinator:latest"),
    "may escalate": lambda o: container(o)["securityContext"].pop("allowPrivilegeEscalation"),
    "keeps capabilities": lambda o: container(o)["securityContext"].pop("capabilities"),
    "can write to its root": lambda o: container(o)["securityContext"].pop("readOnlyRootFilesystem"),
    "limits lack ['memory']": lambda o: container(o)["resources"]["limits"].pop("memory"),
    "is written out": lambda o: container(o)["env"].append({"name": "TIDEGATE_API__TOKEN", "value": "x"}),
    "holds a password": lambda o: container(o)["env"].append({"name": "X", "value": "amqp://u:p@h"}),
    "no livenessProbe": lambda o: container(o).pop("livenessProbe"),
    "which it has not": lambda o: container(o)["readinessProbe"]["httpGet"].update(port="other"),
    "no service account": lambda o: pod(o).update(serviceAccountName="other"),
    "no config map": lambda o: pod(o)["volumes"][0]["configMap"].update(name="other"),
    "no secret other": lambda o: pod(o)["volumes"][1]["secret"].update(secretName="other"),
    "no volume other": lambda o: container(o)["volumeMounts"][0].update(name="other"),
    "with other": lambda o: container(o)["env"][0]["valueFrom"]["secretKeyRef"].update(key="other"),
    "selects no pod": lambda o: service(o)["spec"]["selector"].update({"app.kubernetes.io/name": "other"}),
    "no container has the port": lambda o: service(o)["spec"]["ports"][0].update(targetPort="other"),
    "only referred to": lambda o: o.append(rendered.secrets()["tidegate-worker"]),
}


class Rules(unittest.TestCase):
    def test_every_rule_finds_its_breach(self):
        for expected, change in BREAK.items():
            with self.subTest(expected):
                objects = copy.deepcopy(list(rendered.overlay("trial")))
                change(objects)
                found = policy.problems(objects, rendered.secrets())
                self.assertTrue(any(expected in problem for problem in found), found)

    def test_schemas_find_unknown_fields(self):
        worker = copy.deepcopy(coordinator(rendered.overlay("trial")))
        worker["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
        self.assertTrue(schemas.problems(worker))
        cluster = copy.deepcopy(
            next(one for one in rendered.overlay("production") if one["kind"] == "RabbitmqCluster")
        )
        cluster["spec"]["replica"] = 3
        self.assertTrue(schemas.problems(cluster))


if __name__ == "__main__":
    unittest.main()
