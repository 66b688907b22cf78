"""The Kubernetes shell: a plan → objects, which the cluster then keeps.

    Plan → `layout` which Deployment carries which revision, and its share → `objects.render` → `platform` (server-side apply)

Everything is pure but `platform`, `leader`, `webhook` and `client`, which do things; only these know the cluster's API.

Three rules hold everywhere here:

* Rendering is complete: what is not in the list, and has the owner's label, is removed.  There is nothing to migrate.
* One field manager, `serveplane`, and no field in an object that somebody else decides: never `spec.replicas` of a
  Deployment that an autoscaler owns.
* Names, labels and ports are KServe's, so that dashboards, scripts and its SDK find what they look for.
"""
