"""Every overlay and every component renders to objects that Kubernetes takes and that keep our rules."""

import re
import tomllib
import unittest

import policy
import rendered
import schemas


def seconds(span):
    number, unit = re.fullmatch(r"(\d+)(s|m|h)", span).groups()
    return int(number) * {"s": 1, "m": 60, "h": 3600}[unit]


def named(objects, kind, name):
    return next(one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name)


class Rendered(unittest.TestCase):
    def everything(self):
        for name in rendered.OVERLAYS:
            yield f"overlay {name}", rendered.overlay(name)
        for name in rendered.COMPONENTS:
            yield f"component {name}", rendered.with_component(name)

    def test_objects_are_well_formed(self):
        for what, objects in self.everything():
            for thing in objects:
                with self.subTest(what, object=f"{thing['kind']}/{thing['metadata']['name']}"):
                    self.assertEqual(schemas.problems(thing), [])

    def test_secrets_are_well_formed(self):
        for name, secret in rendered.secrets().items():
            with self.subTest(name):
                self.assertEqual(schemas.problems(secret), [])

    def test_overlays_keep_the_rules(self):
        for name in rendered.OVERLAYS:
            with self.subTest(name):
                self.assertEqual(policy.problems(rendered.overlay(name), rendered.secrets()), [])

    def test_components_keep_the_rules(self):
        for name in rendered.COMPONENTS:
            with self.subTest(name):
                self.assertEqual(policy.problems(rendered.with_component(name), rendered.secrets()), [])

    def test_every_component_is_in_an_overlay_or_says_when_to_use_it(self):
        used = "".join(path.read_text() for path in rendered.KUBERNETES.glob("overlays/*/kustomization.yaml"))
        readme = (rendered.ROOT / "deploy/README.md").read_text()
        for name in rendered.COMPONENTS:
            self.assertTrue(f"components/{name}\n" in used or f"`{name}`" in readme, name)

    def test_everything_is_in_the_namespace_that_denies_by_default(self):
        for name in rendered.OVERLAYS:
            objects = rendered.overlay(name)
            for thing in objects:
                if thing["kind"] != "Namespace":
                    self.assertEqual(thing["metadata"].get("namespace"), "tidegate", thing["metadata"]["name"])
            denied = named(objects, "NetworkPolicy", "default-deny")["spec"]
            self.assertEqual(denied["podSelector"], {})
            self.assertEqual(sorted(denied["policyTypes"]), ["Egress", "Ingress"])
            self.assertNotIn("ingress", denied)
            self.assertNotIn("egress", denied)
            labels = named(objects, "Namespace", "tidegate")["metadata"]["labels"]
            self.assertEqual(labels["pod-security.kubernetes.io/enforce"], "restricted")

    def test_a_draining_worker_is_not_killed(self):
        for name in rendered.OVERLAYS:
            objects = rendered.overlay(name)
            config = next(
                one["data"]["tidegate.toml"]
                for one in objects
                if one["kind"] == "ConfigMap" and "tidegate.toml" in one["data"]
            )
            drain = seconds(tomllib.loads(config)["worker"]["drain_timeout"])
            pod = named(objects, "Deployment", "tidegate-worker")["spec"]["template"]["spec"]
            # It drops the rest within 5 s after that.
            self.assertGreaterEqual(pod["terminationGracePeriodSeconds"], drain + 5 + 10)

    def test_one_version_of_tidegate(self):
        for name in rendered.OVERLAYS:
            tags = set()
            for thing in rendered.overlay(name):
                if thing["kind"] in policy.WORKLOADS:
                    pod = thing["spec"]["template"]["spec"]
                    for container in pod.get("initContainers", []) + pod["containers"]:
                        image, _, tag = container["image"].partition(":")
                        if image.rpartition("/")[2] in policy.OURS:
                            tags.add(tag)
            version = tomllib.loads((rendered.ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
            self.assertEqual(tags, {version})

    def test_autoscalers_have_the_replicas_to_themselves(self):
        for name in ("hpa", "keda"):
            worker = named(rendered.with_component(name), "Deployment", "tidegate-worker")
            self.assertNotIn("replicas", worker["spec"])

    def test_who_reads_the_api_has_a_token_for_it(self):
        tokens = rendered.secrets()["tidegate-api-tokens"]["data"]
        objects = rendered.overlay("production")
        monitor = named(objects, "ServiceMonitor", "tidegate-coordinator")["spec"]["endpoints"][0]
        keda = named(objects, "TriggerAuthentication", "tidegate-api")["spec"]["secretTargetRef"][0]
        for reference in (monitor["authorization"]["credentials"], keda):
            self.assertEqual(reference["name"], "tidegate-api-tokens")
            self.assertIn(reference["key"], tokens)

    def test_keda_asks_the_coordinator_for_what_its_formula_adds_up(self):
        objects = rendered.overlay("production")
        scaled = named(objects, "ScaledObject", "tidegate-worker")["spec"]
        names = [trigger["name"] for trigger in scaled["triggers"]]
        formula = scaled["advanced"]["scalingModifiers"]["formula"]
        self.assertEqual(sorted(formula.split(" + ")), sorted(names))
        named(objects, "Deployment", scaled["scaleTargetRef"]["name"])
        service = named(objects, "Service", "tidegate-coordinator")
        port = service["spec"]["ports"][0]["port"]
        url = f"http://tidegate-coordinator.tidegate.svc:{port}/api/v1/pipelines"
        for trigger in scaled["triggers"]:
            self.assertEqual(trigger["metadata"]["url"], url)
            self.assertEqual(trigger["authenticationRef"]["name"], "tidegate-api")


if __name__ == "__main__":
    unittest.main()
