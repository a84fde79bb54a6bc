"""Alerts are well-formed and fire when they should; alerts and dashboards name only what the programs register."""

import json
import re
import subprocess
import unittest

import metrics
import rendered
import yaml

PROMETHEUS = rendered.ROOT / "deploy/prometheus"
DASHBOARDS = sorted((rendered.ROOT / "deploy/grafana").glob("*.json"))
KNOWN = metrics.registered() | metrics.FOREIGN


def alerts():
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def promtool(*arguments):
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


class Alerts(unittest.TestCase):
    def test_they_fire_when_they_should(self):
        code, said = promtool("test", "rules", rendered.ROOT / "tests/deploy/alerts_test.yml")
        self.assertEqual(code, 0, said)

    def test_each_is_tried(self):
        tried = (rendered.ROOT / "tests/deploy/alerts_test.yml").read_text()
        for rule in alerts():
            self.assertIn(f'alertname="{rule["alert"]}"', tried)

    def test_each_says_what_to_do(self):
        for rule in alerts():
            with self.subTest(rule["alert"]):
                self.assertIn(rule["labels"]["severity"], {"critical", "warning", "info"})
                self.assertTrue(rule["annotations"]["summary"] and rule["annotations"]["runbook"])

    def test_they_name_only_what_exists(self):
        for rule in alerts():
            with self.subTest(rule["alert"]):
                self.assertEqual(metrics.problems(rule["expr"], KNOWN), [])

    def test_values_of_labels_are_those_of_the_code(self):
        source = "".join(
            path.read_text()
            for crate in ("coordinator", "worker", "shared")
            for path in (rendered.ROOT / crate / "src").rglob("*.rs")
        )
        for rule in alerts():
            for metric, label, value in re.findall(r'(tidegate_\w+)\{(\w+)="([^"]*)"\}', rule["expr"]):
                self.assertIn(f'"{value}"', source, f"{metric}: nothing in the code says {label}={value}")

    def test_kubernetes_has_the_same(self):
        copies = [one for one in rendered.overlay("production") if one["kind"] == "PrometheusRule"]
        groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
        self.assertEqual([copy["spec"]["groups"] for copy in copies], [groups])


class Configuration(unittest.TestCase):
    def test_prometheus_takes_it(self):
        code, said = promtool("check", "config", "--syntax-only", PROMETHEUS / "prometheus.yml")
        self.assertEqual(code, 0, said)


class Dashboards(unittest.TestCase):
    def panels(self):
        for path in DASHBOARDS:
            for panel in json.loads(path.read_text())["panels"]:
                if panel["type"] != "row":
                    yield path.name, panel

    def test_there_are_some(self):
        self.assertTrue(list(self.panels()))

    def test_they_name_only_what_exists(self):
        for dashboard, panel in self.panels():
            for target in panel["targets"]:
                query = target["expr"].replace("$__rate_interval", "5m")
                with self.subTest(dashboard, panel=panel["title"]):
                    self.assertEqual(metrics.problems(query, KNOWN), [])

    def test_every_query_can_be_parsed(self):
        queries = [
            {"record": f"panel:{number}", "expr": target["expr"].replace("$__rate_interval", "5m")}
            for number, (_, panel) in enumerate(self.panels())
            for target in panel["targets"]
        ]
        rules = yaml.safe_dump({"groups": [{"name": "panels", "rules": queries}]})
        done = subprocess.run(
            ["promtool", "check", "rules", "--lint=none", "/dev/stdin"], input=rules, capture_output=True, text=True
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_every_panel_says_what_it_shows_and_in_which_unit(self):
        for dashboard, panel in self.panels():
            with self.subTest(dashboard, panel=panel["title"]):
                self.assertTrue(panel["title"] and panel["description"])
                self.assertIn("unit", panel["fieldConfig"]["defaults"])

    def test_nothing_overlaps(self):
        for path in DASHBOARDS:
            taken = {}
            for panel in json.loads(path.read_text())["panels"]:
                at = panel["gridPos"]
                for x in range(at["x"], at["x"] + at["w"]):
                    for y in range(at["y"], at["y"] + at["h"]):
                        other = taken.setdefault((x, y), panel["title"])
                        self.assertEqual(other, panel["title"], path.name)


class Queries(unittest.TestCase):
    def test_what_does_not_exist_is_found(self):
        for query in (
            "rate(tidegate_publishd_total[5m])",
            'tidegate_settled_total{efect="dead"}',
            "sum by (stge) (tidegate_consumers_lost_total)",
            "tidegate_settle_seconds_bucket",
            "1 + 1",
        ):
            self.assertTrue(metrics.problems(query, KNOWN), query)

    def test_the_source_is_read_whole(self):
        self.assertEqual(KNOWN["tidegate_schedule_firings_total"], {"schedule", "result"})
        self.assertEqual(KNOWN["tidegate_permits_total"], {"answer", "pipeline"})
        self.assertIn("tidegate_settle_seconds_count", KNOWN)


if __name__ == "__main__":
    unittest.main()
