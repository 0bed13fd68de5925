"""The Hub's HTTP interface, as huggingface_hub 2.4, datasets 5.2 and transformers 5 use it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote

from .replies import (
    Call,
    Refusal,
    Reply,
    file_entry,
    folder_entry,
    json_reply,
    last_commit,
    ranged,
    sibling,
)
from .storage import Account, Blob, Commit, Job, Repository, as_type, is_large

if TYPE_CHECKING:
    from .server import HubServer

HARDWARE: list[dict[str, Any]] = [
    {
        "name": name,
        "prettyName": pretty,
        "cpu": cpu,
        "ram": "46 GB",
        "ephemeralStorage": "200 GB",
        "accelerator": None,
        "unitCostMicroUSD": cost,
        "unitCostUSD": cost / 1e6,
        "unitLabel": "minute",
    }
    for name, pretty, cpu, cost in (
        ("cpu-basic", "CPU Basic", "2 vCPU", 167),
        ("a10g-large", "Nvidia A10G - large", "12 vCPU", 25_000),
    )
]
_ID = r"(?P<id>[^/]+/[^/]+)"
_API = rf"/api/(?P<kind>models|datasets|spaces)/{_ID}"
_FILES = rf"(?:/(?P<kind>datasets|spaces))?/{_ID}"


class Routes:
    """Find the answer to a request; everything that is not known is a 404."""

    def __init__(self, hub: HubServer) -> None:
        self.hub = hub
        table: list[tuple[str, str, Callable[[Call], Reply]]] = [
            ("GET", r"/api/whoami-v2", self.whoami),
            ("POST", r"/api/repos/create", self.create_repo),
            ("DELETE", r"/api/repos/delete", self.delete_repo),
            ("POST", r"/api/validate-yaml", self.validate_yaml),
            ("GET", rf"{_API}(?:/revision/(?P<rev>[^/]+))?", self.info),
            ("GET", rf"{_API}/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?", self.tree),
            ("POST", rf"{_API}/paths-info/(?P<rev>[^/]+)", self.paths_info),
            ("GET", rf"{_API}/refs", self.refs),
            ("GET", rf"{_API}/commits/(?P<rev>[^/]+)", self.commits),
            ("POST", rf"{_API}/(?P<what>branch|tag)/(?P<rev>[^/]+)", self.create_ref),
            ("DELETE", rf"{_API}/(?P<what>branch|tag)/(?P<rev>[^/]+)", self.delete_ref),
            ("PUT", rf"{_API}/settings", self.settings),
            ("POST", rf"{_API}/super-squash/(?P<rev>[^/]+)", self.squash),
            ("GET", r"/api/jobs/hardware", self.hardware),
            ("GET", r"/api/jobs/(?P<owner>[^/]+)", self.list_jobs),
            ("POST", r"/api/jobs/(?P<owner>[^/]+)", self.run_job),
            ("GET", r"/api/jobs/(?P<owner>[^/]+)/(?P<job>[^/]+)", self.inspect_job),
            ("GET", r"/api/jobs/(?P<owner>[^/]+)/(?P<job>[^/]+)/logs", self.job_logs),
            ("POST", r"/api/jobs/(?P<owner>[^/]+)/(?P<job>[^/]+)/cancel", self.cancel_job),
            ("POST", rf"{_API}/preupload/(?P<rev>[^/]+)", self.preupload),
            ("POST", rf"{_API}/commit/(?P<rev>[^/]+)", self.commit),
            ("POST", rf"{_FILES}\.git/info/lfs/objects/batch", self.lfs_batch),
            ("POST", rf"{_FILES}\.git/info/lfs/objects/verify", self.lfs_verify),
            ("PUT", r"/lfs-storage/(?P<oid>[0-9a-f]{64})", self.lfs_put),
            ("HEAD|GET", rf"{_FILES}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", self.resolve),
        ]
        self.table = [(re.compile(method), re.compile(path), act) for method, path, act in table]

    def answer(
        self, method: str, path: str, query: dict[str, list[str]], headers: dict[str, str], body: bytes
    ) -> Reply:
        try:
            account = self._account(headers)
            for methods, pattern, act in self.table:
                if methods.fullmatch(method) and (match := pattern.fullmatch(path)):
                    parts = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                    return act(Call(method, parts, query, headers, body, account))
            raise Refusal(404, "Sorry, we can't find the page you are looking for.")
        except Refusal as refused:
            return refused.reply

    # -------------------------------------------------------------------------------------- access

    def _account(self, headers: dict[str, str]) -> Account | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme != "Bearer":
            return None
        if token not in self.hub.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[token]

    def _repository(self, call: Call, *, write: bool = False) -> Repository:
        """The repository if the caller may see it. Who may not is told the same as if there were none."""
        repo = self.hub.repositories.get((call.kind, call.parts["id"]))
        who = call.account
        if repo is None or (repo.private and not (who and who.may_read(repo.namespace))):
            # The Hub asks the anonymous to log in, whether or not the repository exists.
            raise Refusal(404 if who else 401, "Repository not found", "RepoNotFound")
        if write:
            self._may_write(who, repo.namespace)
        return repo

    def _may_write(self, who: Account | None, namespace: str) -> Account:
        if who is None:
            raise Refusal(401, "Invalid username or password.")
        if not who.may_write(namespace):
            raise Refusal(403, f"You don't have the rights to write to the namespace {namespace}")
        return who

    def _commit_at(self, repo: Repository, revision: str | None) -> Commit:
        commit = repo.resolve(revision or "main")
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # ------------------------------------------------------------------------------ accounts, repos

    def whoami(self, call: Call) -> Reply:
        who = call.account
        if who is None:
            raise Refusal(401, "Invalid username or password.")
        access: dict[str, Any] = {"displayName": "stand-in", "role": who.role}
        if who.role == "fineGrained":
            access["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": list(who.scopes)}
        orgs = [{"type": "org", "name": name, "roleInOrg": role} for name, role in who.orgs.items()]
        return json_reply(
            {"type": "user", "name": who.name, "orgs": orgs, "auth": {"type": "access_token", "accessToken": access}}
        )

    def create_repo(self, call: Call) -> Reply:
        wanted = call.json()
        if call.account is None:
            raise Refusal(401, "Invalid username or password.")
        namespace = wanted.get("organization") or call.account.name
        who = self._may_write(call.account, namespace)
        repo_id, kind = f"{namespace}/{wanted['name']}", as_type(wanted.get("type") or "model")
        url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        if (kind, repo_id) in self.hub.repositories:
            message = f"You already created this {kind} repo"
            return Reply(409, json.dumps({"error": message, "url": url}).encode(), {"X-Error-Message": message})
        if kind == "space" and not wanted.get("sdk"):
            raise Refusal(400, "A Space needs an sdk")
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.repositories[kind, repo_id] = Repository(repo_id, kind, private=private, author=who.name)
        return json_reply({"url": url, "name": repo_id, "id": repo_id})

    def delete_repo(self, call: Call) -> Reply:
        wanted = call.json()
        namespace = wanted.get("organization") or (call.account.name if call.account else "")
        self._may_write(call.account, namespace)
        key = (wanted.get("type") or "model", f"{namespace}/{wanted['name']}")
        if self.hub.repositories.pop(key, None) is None:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return json_reply({})

    def validate_yaml(self, call: Call) -> Reply:
        content = call.json()["content"]
        if not content.startswith("---\n"):
            return json_reply({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        if "\n---\n" not in content:
            errors = [{"message": "the metadata block is not closed"}]
            return Reply(400, json.dumps({"errors": errors, "warnings": []}).encode())
        return json_reply({"errors": [], "warnings": []})

    def settings(self, call: Call) -> Reply:
        repo = self._repository(call, write=True)
        wanted = call.json()
        if "visibility" in wanted or "private" in wanted:
            repo.private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        return json_reply({"private": repo.private})

    def info(self, call: Call) -> Reply:
        repo = self._repository(call)
        commit = self._commit_at(repo, call.parts.get("rev"))
        card = commit.tree.get("README.md")
        found: dict[str, Any] = {
            "_id": hashlib.md5(repo.id.encode()).hexdigest()[:24],
            "id": repo.id,
            "author": repo.namespace,
            "sha": commit.oid,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "createdAt": repo.log()[-1].date,
            "lastModified": commit.date,
            "siblings": [sibling(p, b, metadata="blobs" in call.query) for p, b in sorted(commit.tree.items())],
        }
        for key in ("pipeline_tag", "library_name"):
            if card and (line := re.search(rf"^{key}: *(\S+)$", card.data.decode(), re.MULTILINE)):
                found[key] = line[1]
        return json_reply(found)

    # ----------------------------------------------------------------------------- commits and refs

    def refs(self, call: Call) -> Reply:
        repo = self._repository(call)

        def listed(prefix: str, named: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"{prefix}{n}", "targetCommit": oid} for n, oid in named.items()]

        found = {"branches": listed("refs/heads/", repo.branches), "tags": listed("refs/tags/", repo.tags)}
        return json_reply({**found, "converts": [], "pullRequests": listed("", repo.pulls)})

    def commits(self, call: Call) -> Reply:
        repo = self._repository(call)
        revision = self._commit_at(repo, call.parts["rev"]).oid
        return json_reply(
            [
                {"id": c.oid, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
                for c in repo.log(revision)
            ]
        )

    def create_ref(self, call: Call) -> Reply:
        """`POST branch/NAME {startingPoint}` or `POST tag/REVISION {tag}`."""
        repo = self._repository(call, write=True)
        wanted = call.json() if call.body else {}
        if call.parts["what"] == "tag":
            named, name, start = repo.tags, wanted["tag"], call.parts["rev"]
        else:
            named, name, start = repo.branches, call.parts["rev"], wanted.get("startingPoint") or "main"
        if name in named:
            raise Refusal(409, f"Reference {name} already exists")
        named[name] = self._commit_at(repo, start).oid
        return json_reply({})

    def delete_ref(self, call: Call) -> Reply:
        repo = self._repository(call, write=True)
        named = repo.tags if call.parts["what"] == "tag" else repo.branches
        if named.pop(call.parts["rev"], None) is None:
            raise Refusal(404, f"Invalid rev id: {call.parts['rev']}", "RevisionNotFound")
        return json_reply({})

    def preupload(self, call: Call) -> Reply:
        repo = self._repository(call, write="create_pr" not in call.query)
        tree = self._commit_at(repo, call.parts["rev"]).tree
        ignored = tree[".gitignore"].data.decode().split() if ".gitignore" in tree else []
        answers = []
        for wanted in call.json()["files"]:
            path = wanted["path"]
            mode = "lfs" if is_large(path, wanted["size"]) else "regular"
            answer: dict[str, Any] = {"path": path, "uploadMode": mode, "shouldIgnore": path in ignored}
            if path in tree:
                answer["oid"] = tree[path].etag
            answers.append(answer)
        return json_reply({"files": answers})

    def commit(self, call: Call) -> Reply:
        as_pull = "create_pr" in call.query
        repo = self._repository(call, write=not as_pull)
        if call.account is None:
            raise Refusal(401, "Invalid username or password.")
        head = self._commit_at(repo, call.parts["rev"])
        lines = [json.loads(line) for line in call.body.splitlines() if line]
        header = lines[0]["value"]
        parent = header.get("parentCommit")
        if parent and not as_pull and not head.oid.startswith(parent):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        changes: dict[str, Blob | None] = {}
        for line in lines[1:]:
            changes.update(self._change(line["key"], line["value"], head))
        new = repo.commit(
            changes,
            title=header["summary"],
            message=header.get("description", ""),
            author=call.account.name,
            branch=call.parts["rev"],
            pull_from=(parent or head.oid) if as_pull else None,
        )
        prefix = f"{self.hub.url}/{'' if repo.type == 'model' else repo.type + 's/'}{repo.id}"
        answer: dict[str, Any] = {
            "success": True,
            "commitOid": new.oid,
            "commitUrl": f"{prefix}/commit/{new.oid}",
            "hookOutput": "",
        }
        if as_pull:
            answer["pullRequestUrl"] = f"{prefix}/discussions/{len(repo.pulls)}"
        return json_reply(answer)

    def _change(self, key: str, value: dict[str, Any], head: Commit) -> dict[str, Blob | None]:
        if key == "file":
            return {value["path"]: Blob(base64.b64decode(value["content"]), lfs=False)}
        if key == "lfsFile":
            if value["oid"] not in self.hub.objects:
                raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
            return {value["path"]: Blob(self.hub.objects[value["oid"]], lfs=True)}
        if key == "deletedFolder":
            return {value["path"].rstrip("/") + "/": None}
        if key == "deletedFile" and value["path"] in head.tree:
            return {value["path"]: None}
        raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")

    def squash(self, call: Call) -> Reply:
        """Leave one commit, with the newest content."""
        repo = self._repository(call, write=True)
        tree = self._commit_at(repo, call.parts["rev"]).tree
        repo.history.clear()
        repo.branches.pop(call.parts["rev"])
        repo.commit({**tree}, title="Super-squash", author=repo.namespace, branch=call.parts["rev"])
        return json_reply({})

    # ----------------------------------------------------------------------------------------- jobs

    def hardware(self, call: Call) -> Reply:
        return json_reply(HARDWARE)

    def _job_owner(self, call: Call) -> str:
        owner, who = call.parts["owner"], call.account
        if who is None:
            raise Refusal(401, "Invalid username or password.")
        if not (who.may_run and who.may_read(owner)):
            raise Refusal(403, f"You don't have the permission to manage jobs of {owner}")
        return owner

    def run_job(self, call: Call) -> Reply:
        owner, spec = self._job_owner(call), call.json()
        if call.account and not call.account.credit:
            raise Refusal(402, "Pre-paid credit balance is insufficient")
        if spec["flavor"] not in {one["name"] for one in HARDWARE}:
            raise Refusal(400, f"Invalid flavor {spec['flavor']}")
        job = Job(f"{len(self.hub.jobs):024x}", owner, spec)
        self.hub.jobs[job.id] = job
        return json_reply(job.described())

    def list_jobs(self, call: Call) -> Reply:
        owner = self._job_owner(call)
        labels = [tuple(label.split("=", 1)) for label in call.query.get("label", [])]
        found = [
            job.described()
            for job in self.hub.jobs.values()
            if job.owner == owner
            and ("stage" not in call.query or job.stage in call.query["stage"])
            and all(job.spec.get("labels", {}).get(key) == value for key, value in labels)
        ]
        return json_reply(found)

    def _job(self, call: Call) -> Job:
        owner, job = self._job_owner(call), self.hub.jobs.get(call.parts["job"])
        if job is None or job.owner != owner:
            raise Refusal(404, "Job not found", "JobNotFound")
        return job

    def inspect_job(self, call: Call) -> Reply:
        return json_reply(self._job(call).described())

    def job_logs(self, call: Call) -> Reply:
        """All lines so far, then the end of the stream: a client comes again until the job has ended."""
        events = [
            json.dumps({"timestamp": f"2026-01-01T00:00:{i:02}.000Z", "data": line})
            for i, line in enumerate(["===== Job started at 2026-01-01 00:00:00 =====", *self._job(call).lines])
        ]
        body = ": keep-alive\n\n" + "".join(f"data: {event}\n\n" for event in events)
        return Reply(200, body.encode(), {"Content-Type": "text/event-stream"})

    def cancel_job(self, call: Call) -> Reply:
        job = self._job(call)
        job.end("CANCELED")
        return json_reply(job.described())

    # --------------------------------------------------------------------------------- large files

    def lfs_batch(self, call: Call) -> Reply:
        self._repository(call, write=True)
        where = self.hub.url
        prefix = "" if call.kind == "model" else f"{call.kind}s/"
        verify = f"{where}/{prefix}{call.parts['id']}.git/info/lfs/objects/verify"
        found = []
        for wanted in call.json()["objects"]:
            answer: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                put = f"{where}/lfs-storage/{wanted['oid']}?signature=of-the-storage"
                answer["actions"] = {"upload": {"href": put}, "verify": {"href": verify}}
            found.append(answer)
        return Reply(
            200,
            json.dumps({"transfer": "basic", "objects": found}).encode(),
            {"Content-Type": "application/vnd.git-lfs+json"},
        )

    def lfs_put(self, call: Call) -> Reply:
        oid = call.parts["oid"]
        if hashlib.sha256(call.body).hexdigest() != oid:
            raise Refusal(400, "The content does not have the announced SHA-256")
        self.hub.objects[oid] = call.body
        return Reply(200)

    def lfs_verify(self, call: Call) -> Reply:
        self._repository(call, write=True)
        wanted = call.json()
        if len(self.hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refusal(404, "Object not found")
        return json_reply({})

    # --------------------------------------------------------------------------------------- reading

    def tree(self, call: Call) -> Reply:
        repo = self._repository(call)
        commit = self._commit_at(repo, call.parts["rev"])
        folder = call.parts.get("path", "").strip("/")
        prefix = f"{folder}/" if folder else ""
        within = {p: b for p, b in sorted(commit.tree.items()) if p.startswith(prefix)}
        if folder and not within:
            raise Refusal(404, f"{folder} does not exist on {call.parts['rev']!r}", "EntryNotFound")
        recursive = call.query.get("recursive", ["false"])[0].lower() in {"true", "1"}
        expand = call.query.get("expand", ["false"])[0].lower() in {"true", "1"}
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in within.items():
            rest = path[len(prefix) :].split("/")
            for depth in range(1, len(rest) if recursive else min(2, len(rest))):
                entries.setdefault(
                    prefix + "/".join(rest[:depth]), folder_entry(prefix + "/".join(rest[:depth]), commit)
                )
            if recursive or len(rest) == 1:
                entries[path] = file_entry(path, blob)
        return json_reply([{**e, **(last_commit(commit) if expand else {})} for e in entries.values()])

    def paths_info(self, call: Call) -> Reply:
        repo = self._repository(call)
        commit = self._commit_at(repo, call.parts["rev"])
        as_json = call.headers.get("content-type", "").startswith("application/json")
        wanted = call.json() if as_json else parse_qs(call.body.decode())
        expand = str(wanted.get("expand", "")).lower() in {"true", "['true']"}
        entries = []
        for path in (p.strip("/") for p in wanted.get("paths", [])):
            if path in commit.tree:
                entries.append(file_entry(path, commit.tree[path]))
            elif any(known.startswith(f"{path}/") for known in commit.tree):
                entries.append(folder_entry(path, commit))
        return json_reply([{**e, **(last_commit(commit) if expand else {})} for e in entries])

    def resolve(self, call: Call) -> Reply:
        repo = self._repository(call)
        commit = self._commit_at(repo, call.parts["rev"])
        blob = commit.tree.get(call.parts["path"])
        if blob is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit.oid})
        headers = {
            "X-Repo-Commit": commit.oid,
            "ETag": f'"{blob.etag}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
            "Content-Disposition": f'inline; filename="{quote(call.parts["path"].split("/")[-1])}"',
        }
        if blob.lfs:
            # The Hub redirects to a storage host; a redirect within one host would lose X-Repo-Commit.
            headers |= {"X-Linked-ETag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
        return ranged(blob.data, call.headers.get("range", ""), headers)
