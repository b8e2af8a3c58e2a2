"""The inventory: ours and Ansible's."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from edgeladder.core.errors import ConfigError
from edgeladder.fleet.inventory import Inventory, jump_host

OURS = """
defaults: {user: pi, key: ~/.ssh/fleet, budget: 1GB, tags: [field]}
groups:
  barn: {device: raspberry-pi-5, budget: 2GB, jump: gate}
  new: {budget: 3GB}
hosts:
  gate: {address: gate.example.org, tags: [jump]}
  barn-1: {address: 10.0.0.11, groups: [barn], port: 2222}
  barn-2: {address: 10.0.0.12, groups: [barn, new], budget: 512MB}
  van: 10.0.0.99
  here:
"""


def write(folder: Path, text: str, name: str = "fleet.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_values_win_from_near_to_far(tmp_path: Path) -> None:
    inventory = Inventory.open(write(tmp_path, OURS))
    hosts = {host.name: host for host in inventory.hosts}
    assert list(hosts) == ["gate", "barn-1", "barn-2", "van", "here"]
    assert (hosts["barn-1"].budget, hosts["barn-1"].port) == ("2GB", 2222)
    assert hosts["barn-2"].budget == "512MB"  # the host over its groups
    assert hosts["van"].budget == "1GB" and hosts["van"].address == "10.0.0.99"
    assert hosts["here"].address == "here"
    assert hosts["gate"].tags == ("field", "jump")
    assert inventory.known_hosts == tmp_path / "known_hosts"
    assert jump_host("gate", inventory, hosts["barn-1"]) is hosts["gate"]
    other = jump_host("root@10.9.8.7:2200", inventory, hosts["van"])
    assert (other.user, other.address, other.port, other.key) == (
        "root", "10.9.8.7", 2200, "~/.ssh/fleet",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "names"),
    [
        (None, ["gate", "barn-1", "barn-2", "van", "here"]),
        ("barn", ["barn-1", "barn-2"]),
        ("barn-*,van", ["barn-1", "barn-2", "van"]),
        ("jump", ["gate"]),
        ("!barn", ["gate", "van", "here"]),
        ("all,!van,!jump", ["barn-1", "barn-2", "here"]),
    ],
)
def test_limit(tmp_path: Path, limit: str | None, names: list[str]) -> None:
    inventory = Inventory.open(write(tmp_path, OURS))
    assert [host.name for host in inventory.limit(limit)] == names


def test_limit_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'barn'"):
        Inventory.open(write(tmp_path, OURS)).limit("bran")


def test_all_errors_at_once(tmp_path: Path) -> None:
    text = """
    defaults: {budgt: 1GB, password: secret}
    hosts:
      "../etc": {port: 70000}
      a: {data: relative, budget: much}
    """
    with pytest.raises(ConfigError) as caught:
        Inventory.open(write(tmp_path, text))
    message = caught.value.message
    for part in ("defaults.budgt, did you mean 'budget'?", "defaults.password", "hosts.../etc"):
        assert part in message
    for part in ("hosts.a.data", "hosts.a.budget"):
        assert part in message
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hosts: {a: {groups: [barm]}}\ngroups: {barn: {}}", "did you mean 'barn'"),
        ("hosts: {a: {jump: b}, b: {jump: a}}", "circle"),
        ("hosts: {}", "at least 1 item"),
        ("hosts: [a", "cannot read YAML"),
    ],
)
def test_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Inventory.open(write(tmp_path, text))


def test_absent(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no inventory here"):
        Inventory.open(tmp_path / "fleet.yaml")


ANSIBLE_YAML = """
all:
  vars:
    ansible_user: pi
    ansible_python_interpreter: auto_silent
    ansible_password: hunter2
    http_port: 80
  children:
    farm:
      children:
        barn:
          hosts:
            barn[1:2].example.org:
            gate:
              ansible_host: 10.0.0.1
              ansible_port: 2200
      vars:
        edgeladder_budget: 2GB
        ansible_ssh_common_args: -o ProxyJump=jump@10.1.1.1:2022
    vans:
      hosts:
        van: {edgeladder_budget: 512MB, ansible_ssh_private_key_file: ~/.ssh/van}
"""

ANSIBLE_INI = """
lone ansible_host=10.0.0.9

[barn]
barn[1:2].example.org
gate ansible_host=10.0.0.1 ansible_port=2200   # the gate

[farm:children]
barn

[farm:vars]
edgeladder_budget=2GB
ansible_ssh_common_args='-J jump@10.1.1.1:2022'

[all:vars]
ansible_user=pi
ansible_become_pass=hunter2

[vans]
van edgeladder_budget=512MB ansible_ssh_private_key_file=~/.ssh/van
"""


@pytest.mark.parametrize(
    ("text", "name"), [(ANSIBLE_YAML, "hosts.yml"), (ANSIBLE_INI, "hosts"), (ANSIBLE_INI, "a.ini")]
)
def test_ansible_as_it_is(tmp_path: Path, text: str, name: str) -> None:
    path = write(tmp_path, text, name)
    write(tmp_path, "edgeladder_device: jetson-orin\nsecret: !vault |\n  abc\n",
          "group_vars/barn.yml")  # fmt: skip
    inventory = Inventory.open(path)
    hosts = {host.name: host for host in inventory.hosts}
    assert {"barn1.example.org", "barn2.example.org", "gate", "van"} <= set(hosts)
    gate, van = hosts["gate"], hosts["van"]
    assert (gate.address, gate.port, gate.user) == ("10.0.0.1", 2200, "pi")
    assert (gate.budget, gate.device) == ("2GB", "jetson-orin")
    assert gate.python == "python3"
    assert gate.jump == "jump@10.1.1.1:2022" and van.jump is None
    assert (van.budget, van.key, van.device) == ("512MB", "~/.ssh/van", None)
    assert [host.name for host in inventory.limit("farm")] == [
        "barn1.example.org", "barn2.example.org", "gate",
    ]  # fmt: skip
    notes = "\n".join(inventory.notes)
    assert "keys and agents only" in notes and "hunter2" not in notes


@pytest.mark.parametrize(
    ("arguments", "jump"),
    [
        ('-o ProxyCommand="ssh -W %h:%p -q pi@gate.example.org"', "pi@gate.example.org"),
        ("-C -o 'ProxyCommand=ssh -p 2022 -l pi -i ~/.ssh/g gate -W %h:%p'", "pi@gate:2022"),
        ("-o ProxyCommand='/usr/bin/ssh -oBatchMode=yes -W%h:%p gate'", "gate"),
        ("-J pi@gate:2022", "pi@gate:2022"),
        ("-o ControlMaster=auto", None),
    ],
)
def test_ansible_jump_hosts(tmp_path: Path, arguments: str, jump: str | None) -> None:
    values = {"all": {"hosts": {"a": {"ansible_ssh_common_args": arguments}}}}
    (host,) = Inventory.open(write(tmp_path, yaml.safe_dump(values), "hosts.yml")).hosts
    assert host.jump == jump


def test_ansible_proxy_command_of_another_kind_is_refused(tmp_path: Path) -> None:
    text = "a ansible_ssh_common_args='-o ProxyCommand=\"nc -X 5 -x p:1080 %h %p\"'\n"
    with pytest.raises(ConfigError, match="is no `ssh -W") as caught:
        Inventory.open(write(tmp_path, text, "hosts"))
    assert "edgeladder_jump" in str(caught.value.remedy)


def test_ansible_secrets_and_local_hosts_are_passed_over(tmp_path: Path) -> None:
    text = """
all:
  hosts:
    controller: {ansible_connection: local}
    a:
      ansible_become_password: !vault |
        $ANSIBLE_VAULT;1.1;AES256
        6162
  children:
    desks:
      vars: {ansible_connection: winrm}
      hosts: {b: {}, c: {ansible_connection: ssh}}
"""
    inventory = Inventory.open(write(tmp_path, text, "hosts.yaml"))
    assert [host.name for host in inventory.hosts] == ["a", "c"]
    notes = "\n".join(inventory.notes)
    assert "ansible_connection is local" in notes and "ansible_connection is winrm" in notes
    assert "6162" not in notes


def test_ansible_template_is_refused(tmp_path: Path) -> None:
    text = "all:\n  hosts:\n    a: {ansible_host: '{{ base }}.5'}\n"
    with pytest.raises(ConfigError, match="a template"):
        Inventory.open(write(tmp_path, text))


def test_ansible_inventory_is_asked_for_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, ANSIBLE_INI, "hosts")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(ConfigError, match="is not installed here") as caught:
        Inventory.open(path)
    assert "pip install ansible-core" in str(caught.value.remedy)
    assert Inventory.open(write(tmp_path, OURS)).hosts  # ours needs nothing


def test_ansible_inventories_that_ansible_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read it: .*parse") as caught:
        Inventory.open(write(tmp_path, "[barn\na\n", "hosts"))
    assert "ansible-inventory --list -i" in str(caught.value.remedy)
    write(tmp_path, "$ANSIBLE_VAULT;1.1;AES256\n6162", "host_vars/a.yml")
    with pytest.raises(ConfigError, match="vault") as caught:
        Inventory.open(write(tmp_path, "[barn]\na\n", "hosts"))
    assert "ANSIBLE_VAULT_PASSWORD_FILE" in str(caught.value.remedy)


def test_ansible_order_and_groups(tmp_path: Path) -> None:
    """Hosts as they stand in the file; a host's groups from the outermost inwards."""
    text = "[near]\nz[09:10]\na\n[far:children]\nnear\n[local]\na\n"
    hosts = Inventory.open(write(tmp_path, text, "hosts")).hosts
    assert [host.name for host in hosts] == ["z09", "z10", "a"]
    assert [host.groups for host in hosts] == [("far", "near"), ("far", "near"),
                                               ("far", "near", "local")]  # fmt: skip
