"""The Kubernetes shell: a plan → objects, which the cluster then keeps.

    Plan → `rendering` which objects these are → `platform` applies them, and tells what it sees → the controller

`rendering` is pure: which objects a plan is.  `admission` is what the API server takes: the CRDs, and the webhook that it asks.
The files beside these two do things: `platform` is what the controller acts through (`cache` watches, `children` applies,
`seeing` and `pods` tell what is there), `leader` elects one of several controllers, and only `api` knows HTTP.

Three rules hold everywhere here:

* Rendering is complete: what is not in the list, and has the owner's label, is removed.  There is nothing to migrate.
* One field manager, `serveplane`, and no field in an object that somebody else decides: never `spec.replicas` of a
  Deployment that an autoscaler owns.
* Names, labels and ports are KServe's, so that dashboards, scripts and its SDK find what they look for.
"""
