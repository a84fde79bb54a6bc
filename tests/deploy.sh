#!/usr/bin/env bash
# Checks what is in deploy/ without a cluster or a container engine: manifests against Kubernetes' schemas and our own
# rules, alerts and dashboards against the metrics that there are, users against RabbitMQ's definitions.
# Arguments go to Python's unittest, such as: ./tests/deploy.sh test_policy
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/lib/setup.sh

ensure python promtool
# Debian 12's kubernetes-client is older than kustomize's components.
kubectl kustomize deploy/kubernetes/overlays/trial >/dev/null ||
  fail "please install kubectl 1.24 or newer: https://kubernetes.io/docs/tasks/tools/ (or see the error above)"

venv=target/deploy-checks requirements=tests/deploy/requirements.txt
if ! cmp -s $requirements $venv/requirements.txt; then
  say "installing Kubernetes' schemas …"
  python3 -m venv --clear $venv
  $venv/bin/pip install --quiet --disable-pip-version-check --requirement $requirements
  cp $requirements $venv/
fi

export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=tests/deploy
if [ $# -eq 0 ]; then
  set -- discover --start-directory tests/deploy
fi
$venv/bin/python -m unittest "$@"
