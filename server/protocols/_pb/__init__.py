"""Open Inference's protobuf messages, in a descriptor pool of our own.  `open_inference.py` is generated (scripts/generate).

The default pool takes a name once per process, so a model's code that imports `tritonclient` next to a server whose
messages lived there would fail, or the server would.  Nothing but descriptors and message classes belongs here.
"""

from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from server.protocols._pb.open_inference import DESCRIPTOR_SET

POOL = DescriptorPool()
for _file in FileDescriptorSet.FromString(DESCRIPTOR_SET).file:
    POOL.AddSerializedFile(_file.SerializeToString())


def message(name: str) -> Any:
    """The class of the message `inference.<name>`."""
    return GetMessageClass(POOL.FindMessageTypeByName(f"inference.{name}"))


SERVICE = "inference.GRPCInferenceService"
# method name → (request class, response class)
METHODS: dict[str, tuple[Any, Any]] = {
    method.name: (GetMessageClass(method.input_type), GetMessageClass(method.output_type))
    for method in POOL.FindServiceByName(SERVICE).methods
}
