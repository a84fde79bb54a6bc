"""RabbitMQ's users are the same wherever they are written down. The definitions themselves are compared with the code
by the coordinator's tests."""

import json
import unittest

import rendered

DEFINITIONS = json.loads((rendered.ROOT / "deploy/rabbitmq/definitions.json").read_text())
USERS = {user["name"]: user for user in DEFINITIONS["users"]}


class Users(unittest.TestCase):
    def test_definitions_hold_no_password(self):
        self.assertEqual({user["password_hash"] for user in DEFINITIONS["users"]}, {""})

    def test_the_operators_users_are_those_of_the_definitions(self):
        objects = rendered.overlay("production")
        permissions = {
            one["spec"]["userReference"]["name"]: one["spec"] for one in objects if one["kind"] == "Permission"
        }
        for granted in DEFINITIONS["permissions"]:
            spec = permissions.pop(granted["user"])
            expected = {kind: granted[kind] for kind in ("configure", "write", "read")}
            self.assertEqual((spec["vhost"], spec["permissions"]), (granted["vhost"], expected))
        self.assertEqual(permissions, {})
        users = {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "User"}
        self.assertEqual(users.keys(), USERS.keys())
        for name, spec in users.items():
            self.assertEqual(spec.get("tags", []), USERS[name]["tags"])
            self.assertIn(spec["importCredentialsSecret"]["name"], rendered.secrets())

    def test_everybody_has_a_password_for_the_definitions(self):
        self.assertEqual(rendered.secrets()["tidegate-rabbitmq-users"]["data"].keys(), USERS.keys())

    def test_only_the_monitor_sees_the_management_api(self):
        self.assertEqual([name for name, user in USERS.items() if user["tags"]], ["tidegate-monitor"])


if __name__ == "__main__":
    unittest.main()
