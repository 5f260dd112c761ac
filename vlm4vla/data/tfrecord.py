"""TFRecord files and `tf.train.Example` messages, without TensorFlow.

A record is: length uint64, masked CRC-32C of those 8 bytes, data, masked CRC-32C of the data
(tensorflow.org/tutorials/load_data/tfrecord). The message is `tensorflow/core/example`'s.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

_HEAD, _CRC = struct.Struct("<QI"), struct.Struct("<I")


@dataclass(frozen=True)
class Record:
    """Where a record lies in its file: offset and length of its data, and the data's CRC."""

    offset: int
    length: int
    crc: int


def masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def records(path: Path) -> Iterator[Record]:
    """Every record of a file, without its data; ValueError where the file is damaged."""
    size = path.stat().st_size
    with path.open("rb") as file:
        number = 0
        while file.tell() < size:
            yield _next(file, size, f"{path}: record {number}")
            number += 1


def _next(file: IO[bytes], size: int, where: str) -> Record:
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        raise ValueError(f"{where} is truncated")
    length, crc = _HEAD.unpack(head)
    if masked_crc(head[:8]) != crc:
        raise ValueError(f"{where}: the length's checksum differs; not a TFRecord, or damaged")
    offset = file.tell()
    if offset + length + _CRC.size > size:
        raise ValueError(f"{where} is truncated")
    file.seek(length, 1)
    return Record(offset, length, _CRC.unpack(file.read(_CRC.size))[0])


def read_record(path: Path, record: Record) -> bytes:
    """A record's data; ValueError when its checksum differs."""
    with path.open("rb") as file:
        file.seek(record.offset)
        data = file.read(record.length)
    if masked_crc(data) != record.crc:
        raise ValueError("the data's checksum differs: the file is damaged")
    return data


def write_records(path: Path, payloads: list[bytes]) -> None:
    """A TFRecord file, for examples and tests."""
    with path.open("wb") as file:
        for data in payloads:
            length = struct.pack("<Q", len(data))
            file.write(length + _CRC.pack(masked_crc(length)))
            file.write(data + _CRC.pack(masked_crc(data)))


Values = list[bytes] | np.ndarray


def parse_example(data: bytes) -> dict[str, Values]:
    """Feature name to bytes values, or a float32 or int64 array; ValueError if it is not one."""
    example = _example_class()()
    try:
        example.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(f"not a tf.train.Example ({error})") from error
    return {name: _values(feature) for name, feature in example.features.feature.items()}


def _values(feature: Any) -> Values:
    kind = feature.WhichOneof("kind")
    if kind == "float_list":
        return np.array(feature.float_list.value, np.float32)
    if kind == "int64_list":
        return np.array(feature.int64_list.value, np.int64)
    return list(feature.bytes_list.value)


def build_example(features: Mapping[str, Values]) -> bytes:
    """The inverse of `parse_example`."""
    example = _example_class()()
    for name, values in features.items():
        feature = example.features.feature[name]
        if isinstance(values, list):
            feature.bytes_list.value.extend(values)
        elif values.dtype.kind == "f":
            feature.float_list.value.extend(values.ravel().tolist())
        else:
            feature.int64_list.value.extend(values.astype(np.int64).ravel().tolist())
    return example.SerializeToString()


@lru_cache(maxsize=1)
def _example_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="vlm4vla/example.proto", package="vlm4vla.tf")
    file.syntax = "proto3"
    field = descriptor_pb2.FieldDescriptorProto
    scalars = {"Bytes": field.TYPE_BYTES, "Float": field.TYPE_FLOAT, "Int64": field.TYPE_INT64}
    feature = descriptor_pb2.DescriptorProto(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, kind) in enumerate(scalars.items(), 1):
        values = file.message_type.add(name=f"{name}List")
        values.field.add(name="value", number=1, type=kind, label=field.LABEL_REPEATED)
        one = _message_field(feature, f"{name.lower()}_list", number, f"{name}List")
        one.oneof_index = 0
    file.message_type.append(feature)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    _message_field(entry, "value", 2, "Feature")
    _message_field(features, "feature", 1, "Features.FeatureEntry").label = field.LABEL_REPEATED
    _message_field(file.message_type.add(name="Example"), "features", 1, "Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("vlm4vla.tf.Example"))


def _message_field(owner: Any, name: str, number: int, kind: str) -> Any:
    field = descriptor_pb2.FieldDescriptorProto
    return owner.field.add(
        name=name,
        number=number,
        type=field.TYPE_MESSAGE,
        type_name=f".vlm4vla.tf.{kind}",
        label=field.LABEL_OPTIONAL,
    )
