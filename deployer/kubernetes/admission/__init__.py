"""What the cluster's API server takes, before the controller sees it.

`crd` writes the CustomResourceDefinitions from the models of `deployer.spec`, with the CEL `rules` and the `texts` of
`kubectl explain`.  `webhook` serves `reviews` - the spec's own validation and defaults - over HTTPS; `certificate` makes
what it needs for that, and `keeping` keeps it in a Secret and tells the API server.
"""
