//! Which broker versions are good.

use super::Check;

const NAME: &str = "broker.version";

/// What is to be said about a broker of this version.
pub(super) fn check(product: &str, version: &str) -> Check {
    let mut seen = format!("{product} {version}");
    if product != "RabbitMQ" {
        return Check::warn(NAME, seen).advise("Tidegate is tested with RabbitMQ alone");
    }
    let numbers = numbers(version);
    for difference in numbers.map(differences).unwrap_or_default() {
        seen.push_str("; ");
        seen.push_str(difference);
    }
    match numbers {
        Some([4, 3, patch]) if patch >= 5 => Check::ok(NAME, seen),
        Some([4, 2, patch]) if patch >= 10 => Check::ok(NAME, seen),
        Some([4, minor, _]) if minor >= 4 => Check::ok(NAME, seen),
        Some([major, _, _]) if major >= 5 => Check::ok(NAME, seen),
        Some([4, 2 | 3, _]) => Check::warn(NAME, seen).advise(
            "upgrade to 4.3.5 or 4.2.10: before them, messages could be lost or stuck in rare faults of a cluster",
        ),
        Some([major, minor, _]) if (major, minor) >= (3, 10) => Check::warn(NAME, seen)
            .advise("it works; the broker's own support for it has ended: plan for 4.3.5 or 4.2.10"),
        Some(_) => Check::fail(NAME, seen).advise("quorum queues need 3.10 or later: upgrade"),
        None => Check::unknown(NAME, seen),
    }
}

/// What such a version does otherwise than 4.3, as far as it changes what an operator sees of Tidegate. Source: the
/// release notes of 4.3.0, and the guides to quorum queues and consumers.
fn differences(version: [u32; 3]) -> Vec<&'static str> {
    let mut differences = Vec::new();
    if version < [4, 3, 0] {
        differences
            .push("a batch that is given back counts towards the delivery limit of its queue");
        differences.push("one that outlasts consumer_timeout costs its worker all that it holds");
    }
    if version < [3, 12, 0] {
        differences.push("consumer_timeout can only be set for a whole node");
    }
    differences
}

/// Major, minor, patch; whatever follows them (`-rc.1`, `+build`) does not matter.
fn numbers(version: &str) -> Option<[u32; 3]> {
    let mut parts = version
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().ok());
    Some([parts.next()??, parts.next()??, parts.next()??])
}

#[cfg(test)]
mod tests {
    use super::super::Finding;
    use super::*;

    #[test]
    fn versions_are_told_apart() {
        let cases = [
            ("4.3.5", Finding::Ok),
            ("4.2.10", Finding::Ok),
            ("4.10.0", Finding::Ok),
            ("5.0.0", Finding::Ok),
            ("4.3.4", Finding::Warn),
            ("4.2.9", Finding::Warn),
            ("4.0.9", Finding::Warn),
            ("3.13.7", Finding::Warn),
            ("3.10.8", Finding::Warn),
            ("3.9.29", Finding::Fail),
            ("2.8.7", Finding::Fail),
            ("4.3.5-rc.1", Finding::Ok),
            ("odd", Finding::Unknown),
        ];
        for (version, expected) in cases {
            assert_eq!(check("RabbitMQ", version).finding, expected, "{version}");
        }
        assert_eq!(check("LavinMQ", "2.0.0").finding, Finding::Warn);
    }

    #[test]
    fn it_is_told_what_older_versions_do_otherwise() {
        for (version, count) in [("3.10.8", 3), ("3.12.0", 2), ("4.2.10", 2), ("4.3.0", 0)] {
            let differences = differences(numbers(version).unwrap());
            assert_eq!(differences.len(), count, "{version}");
            let seen = check("RabbitMQ", version).detail;
            assert!(differences.iter().all(|d| seen.contains(d)), "{seen}");
        }
    }
}
