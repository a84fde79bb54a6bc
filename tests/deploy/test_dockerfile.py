"""The Dockerfile, as far as it can be judged without building it."""

import re
import tomllib
import unittest

import rendered

LINES = (rendered.ROOT / "deploy/Dockerfile").read_text().splitlines()


def stages():
    """What each stage is made from, and its instructions."""
    found = {}
    for line in LINES:
        if begun := re.fullmatch(r"FROM (\S+) AS (\w+)", line):
            found[begun[2]] = (begun[1], [])
        elif found and line and not line.startswith("#"):
            list(found.values())[-1][1].append(line)
    return found


class Dockerfile(unittest.TestCase):
    def test_base_images_are_arguments_with_fixed_defaults(self):
        arguments = dict(re.fullmatch(r"ARG (\w+)=(\S+)", line).groups() for line in LINES if line.startswith("ARG"))
        for base, _ in stages().values():
            if base not in stages():
                image, _, tag = arguments[base.strip("${}")].rpartition(":")
                self.assertTrue(image and tag and tag != "latest", base)

    def test_rust_is_new_enough(self):
        wanted = tomllib.loads((rendered.ROOT / "Cargo.toml").read_text())["workspace"]["package"]["rust-version"]
        image = next(line for line in LINES if line.startswith("ARG BUILD_IMAGE"))
        major, minor = re.search(r"rust:(\d+)\.(\d+)", image).groups()
        self.assertGreaterEqual((int(major), int(minor)), tuple(map(int, wanted.split("."))))

    def test_every_program_has_a_target_that_runs_it_as_nobody(self):
        for target, program in {"coordinator": "coordinator", "worker": "worker", "cli": "tidegate"}.items():
            base, instructions = stages()[target]
            with self.subTest(target):
                self.assertEqual(base, "runtime")
                self.assertIn(f"COPY --from=build /programs/{program} /{program}", instructions)
                self.assertIn(f'ENTRYPOINT ["/{program}"]', instructions)
                self.assertFalse([line for line in instructions if line.startswith(("USER", "RUN"))])
        self.assertIn("USER 65532:65532", stages()["runtime"][1])

    def test_whatever_is_compiled_reaches_the_builder(self):
        ignored = (rendered.ROOT / ".dockerignore").read_text().splitlines()
        kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
        members = tomllib.loads((rendered.ROOT / "Cargo.toml").read_text())["workspace"]["members"]
        self.assertIn("*", ignored)
        self.assertLessEqual({member.partition("/")[0] for member in members} | {"Cargo.toml", "Cargo.lock"}, kept)


if __name__ == "__main__":
    unittest.main()
