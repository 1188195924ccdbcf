"""Offline checks of what is deployed: `python -m deploy.check`.

Every overlay is built by kustomize and held against Kubernetes' own schemas, those of the custom
resources, the programs' command lines and the rules of `deploy.check.rules`; alerts go through
promtool, and what alerts and the dashboard ask for is compared with what the code exports.
"""
