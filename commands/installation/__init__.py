"""Commands about this installation: the demo, jobs on a cluster, licences."""
