"""Which objects a plan is on a cluster: pure.

    Plan → `layout` which Deployment carries which revision, and its share → `objects.render` → what to apply

`objects` asks the others, a file per kind: `deployment` (with `storage` and `credentials` for its init container), `service`,
`autoscaler`, `route`, `policy`.  `labels` is what all of them bear, `settings` what the administrator chose.  Nothing here
knows how an object gets to the cluster.
"""
