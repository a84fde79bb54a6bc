"""Compose: what it refers to is there, nothing secret is written out, and our containers can do little."""

import pathlib
import re
import subprocess
import tempfile
import tomllib
import unittest

import policy
import rendered
import yaml

FOLDER = rendered.ROOT / "deploy/compose"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]


def ours():
    return {name: one for name, one in SERVICES.items() if one["image"].partition(":")[0] in policy.OURS}


class Compose(unittest.TestCase):
    def test_images_have_the_version_of_the_code_or_a_fixed_one(self):
        version = tomllib.loads((rendered.ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
        for name, service in SERVICES.items():
            image, _, tag = service["image"].partition(":")
            with self.subTest(name):
                self.assertTrue(tag and tag != "latest")
                if image in policy.OURS:
                    self.assertEqual(tag, version)

    def test_kubernetes_trial_uses_the_same_images(self):
        in_kubernetes = {
            container["image"]
            for thing in rendered.overlay("trial")
            if thing["kind"] in policy.WORKLOADS
            for container in thing["spec"]["template"]["spec"]["containers"]
        }
        here = {one["image"] for one in SERVICES.values() if "profiles" not in one}
        self.assertEqual(here, in_kubernetes)

    def test_targets_are_the_dockerfiles(self):
        stages = re.findall(r"^FROM .* AS (\w+)$", (rendered.ROOT / "deploy/Dockerfile").read_text(), re.M)
        for name, service in ours().items():
            with self.subTest(name):
                self.assertIn(service["build"]["target"], stages)
                self.assertTrue((FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).is_file())

    def test_our_containers_can_do_little(self):
        self.assertEqual(set(ours()), {"definitions", "coordinator", "worker", "emulator"})
        for name, service in ours().items():
            with self.subTest(name):
                self.assertTrue(service["read_only"])
                self.assertEqual(service["cap_drop"], ["ALL"])
                self.assertEqual(service["security_opt"], ["no-new-privileges:true"])

    def test_nothing_is_published_to_other_machines(self):
        for name, service in SERVICES.items():
            for port in service.get("ports", []):
                self.assertTrue(port.startswith("127.0.0.1:"), f"{name}: {port}")

    def test_no_secret_is_written_out(self):
        for name, service in SERVICES.items():
            for variable, value in service.get("environment", {}).items():
                self.assertFalse(policy.looks_secret(variable) and not value.startswith("/"), f"{name}: {variable}")

    def test_the_script_makes_the_secrets_and_keeps_them(self):
        with tempfile.TemporaryDirectory() as folder:
            make = lambda: subprocess.run([FOLDER / "secrets.sh", folder], check=True, capture_output=True)
            make()
            files = {path.name: path.read_text() for path in pathlib.Path(folder).iterdir()}
            self.assertEqual(files.keys(), COMPOSE["secrets"].keys())
            self.assertEqual(len(set(files.values())), len(files))
            make()
            self.assertEqual(files, {path.name: path.read_text() for path in pathlib.Path(folder).iterdir()})
            for path in pathlib.Path(folder).iterdir():
                self.assertEqual(path.stat().st_mode & 0o777, 0o444)
            self.assertEqual(pathlib.Path(folder).stat().st_mode & 0o077, 0)

    def test_what_is_referred_to_is_there(self):
        for name, service in SERVICES.items():
            with self.subTest(name):
                self.assertLessEqual(set(service.get("secrets", [])), COMPOSE["secrets"].keys())
                self.assertLessEqual({one["source"] for one in service.get("configs", [])}, COMPOSE["configs"].keys())
                self.assertLessEqual({one.partition(":")[0] for one in service.get("volumes", [])}, COMPOSE["volumes"].keys())
                self.assertLessEqual(set(service["networks"]), COMPOSE["networks"].keys())
        for name, config in COMPOSE["configs"].items():
            self.assertTrue((FOLDER / config["file"]).is_file(), name)
        for name, secret in COMPOSE["secrets"].items():
            self.assertEqual(secret["file"], f"secrets/{name}")

    def test_whoever_is_waited_for_says_when_it_is_healthy(self):
        for name, service in SERVICES.items():
            for other, how in service.get("depends_on", {}).items():
                if how["condition"] == "service_healthy":
                    self.assertIn("healthcheck", SERVICES[other], f"{name} waits for {other}")
                elif how["condition"] == "service_started":
                    self.assertFalse(how["required"], f"{name} needs {other}, which may not be ready")
                else:
                    self.assertEqual(SERVICES[other]["restart"], "no", f"{name} waits for the end of {other}")

    def test_a_draining_worker_is_not_killed(self):
        drain = tomllib.loads((FOLDER / "tidegate.toml").read_text())["worker"]["drain_timeout"]
        grace = SERVICES["worker"]["stop_grace_period"]
        self.assertGreaterEqual(int(grace.removesuffix("s")), int(drain.removesuffix("s")) + 5 + 10)

    def test_the_demos_clock_is_the_emulators(self):
        demo = tomllib.loads((FOLDER / "demo.toml").read_text())["search_console"]
        emulator = tomllib.loads((rendered.ROOT / "deploy/demo/emulator.toml").read_text())
        self.assertEqual(demo["now"], emulator["now"])
        self.assertIn(demo["endpoint"], SERVICES["emulator"]["command"])
        self.assertIn(demo["credentials"], SERVICES["emulator"]["command"])

    def test_prometheus_scrapes_what_is_there(self):
        scraped = yaml.safe_load((rendered.ROOT / "deploy/prometheus/prometheus.yml").read_text())
        for job in scraped["scrape_configs"]:
            for found in job.get("dns_sd_configs", []):
                self.assertLessEqual(set(found["names"]), SERVICES.keys())
            for targets in job.get("static_configs", []):
                for target in targets["targets"]:
                    self.assertIn(target.partition(":")[0], SERVICES)
            token = job.get("authorization", {}).get("credentials_file")
            if token:
                self.assertIn(pathlib.Path(token).name, SERVICES["prometheus"]["secrets"])


if __name__ == "__main__":
    unittest.main()
