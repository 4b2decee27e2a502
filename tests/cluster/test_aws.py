"""The files of `cluster/aws`: taken by Ray's own code for AWS, against a stand-in for AWS."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from jsonschema import ValidationError
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config

AWS = Path(__file__).resolve().parents[2] / "cluster" / "aws"
REGION = "eu-central-1"


def described() -> dict[str, Any]:
    return dict(yaml.safe_load((AWS / "cluster.yaml").read_text()))


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """An account that has the stack of `account.yaml`; yields its security group."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("HOME", str(tmp_path))
    with mock_aws():
        vpc = boto3.client("ec2", region_name=REGION).describe_vpcs()["Vpcs"][0]["VpcId"]
        stacks = boto3.client("cloudformation", region_name=REGION)
        given = {"Bucket": "lab", "SshFrom": "203.0.113.7/32", "VpcId": vpc}
        stacks.create_stack(
            StackName="ast-ray",
            TemplateBody=(AWS / "account.yaml").read_text(),
            Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in given.items()],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        (output,) = stacks.describe_stacks(StackName="ast-ray")["Stacks"][0]["Outputs"]
        yield output["OutputValue"]


def test_ray_takes_the_file_and_refuses_unknown_keys() -> None:
    config = prepare_config(described())
    validate_config(config)
    for place in (config, config["docker"], config["available_node_types"]["gpu"]):
        place["max_worker"] = 1
        with pytest.raises(ValidationError, match="max_worker"):
            validate_config(config)
        del place["max_worker"]


def test_ray_starts_machines_with_the_rights_and_doors_of_the_stack(account: str) -> None:
    given = described()
    for kind in given["available_node_types"].values():
        assert kind["node_config"]["SecurityGroupIds"] == ["sg-00000000000000000"]
        kind["node_config"]["SecurityGroupIds"] = [account]
    config = AWSNodeProvider.fillout_available_node_types_resources(prepare_config(given))
    validate_config(config)
    kinds = bootstrap_aws(copy.deepcopy(config))["available_node_types"]

    gpus = {name: kind["resources"].get("GPU", 0) for name, kind in kinds.items()}
    assert gpus == {"head": 0, "cpu": 0, "gpu": 1}
    assert {name: kind["resources"]["CPU"] for name, kind in kinds.items()} == {
        "head": 0, "cpu": 16, "gpu": 8,
    }  # fmt: skip
    assert all(kind["min_workers"] == 0 for kind in kinds.values())
    machines = {name: kind["node_config"] for name, kind in kinds.items()}
    assert {name: "spot" in str(machine) for name, machine in machines.items()} == {
        "head": False, "cpu": True, "gpu": True,
    }  # fmt: skip
    profiles = {one["InstanceProfileName"] for one in _profiles()}
    assert {machine["IamInstanceProfile"]["Name"] for machine in machines.values()} == profiles
    assert all(machine["SecurityGroupIds"] == [account] for machine in machines.values())
    assert all(machine["SubnetIds"] for machine in machines.values())


def _profiles() -> list[dict[str, Any]]:
    return list(boto3.client("iam").list_instance_profiles()["InstanceProfiles"])


def test_group_lets_in_its_own_machines_and_one_address(account: str) -> None:
    groups = boto3.client("ec2", region_name=REGION).describe_security_groups(GroupIds=[account])
    rules = groups["SecurityGroups"][0]["IpPermissions"]
    doors = [(rule.get("FromPort"), rule["IpRanges"], rule["UserIdGroupPairs"]) for rule in rules]
    assert len(doors) == 2
    assert (22, [{"CidrIp": "203.0.113.7/32"}], []) in doors
    assert [pairs[0]["GroupId"] for port, _, pairs in doors if port is None] == [account]


def test_every_ray_process_gets_the_token_and_the_dashboard_stays_inside() -> None:
    config = described()
    (folder,) = config["file_mounts"]
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        (start,) = (command for command in commands if "ray start" in command)
        assert f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={folder}/auth_token" in start
        assert "dashboard-host=0.0.0.0" not in start
    # Ray's defaults install a version of its own.
    prepared = prepare_config(config)
    for name in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert prepared[name] == []


def test_bucket_takes_the_rule_for_unfinished_uploads(account: str) -> None:
    s3 = boto3.client("s3", region_name="us-east-1")
    s3.create_bucket(Bucket="lab")
    rules = json.loads((AWS / "lifecycle.json").read_text())
    s3.put_bucket_lifecycle_configuration(Bucket="lab", LifecycleConfiguration=rules)
    (rule,) = s3.get_bucket_lifecycle_configuration(Bucket="lab")["Rules"]
    assert rule["Status"] == "Enabled"
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
