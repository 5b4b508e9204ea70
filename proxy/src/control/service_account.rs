//! The account that the packaged unit serves as, for `check`: root may read what that account may not.

use std::fs;
use std::path::Path;
use std::thread;

use rustix::process::{Gid, Uid, geteuid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// `User=` and `Group=` of packaging/dcv-splice.service.
const ACCOUNT: &str = "dcv-splice";
/// The configuration that it serves by (`ExecStart=` there).
const CONFIGURATION: &str = "/etc/dcv-splice/dcv-splice.toml";

/// The ids of an account.
#[derive(Clone, Debug, Eq, PartialEq)]
struct UnixAccount {
    user: u32,
    group: u32,
    others: Vec<u32>,
}

/// What `look` finds as that account, on a thread of its own; nothing where this is not root, where `configuration` is
/// not the unit's, or where there is no such account. An error where the account can't be taken on.
pub(super) fn as_account<T: Send>(
    configuration: Option<&Path>,
    look: impl FnOnce() -> T + Send,
) -> std::io::Result<Option<T>> {
    if !geteuid().is_root() || configuration != Some(Path::new(CONFIGURATION)) {
        return Ok(None);
    }
    let [passwd, group] =
        ["/etc/passwd", "/etc/group"].map(|file| fs::read_to_string(file).unwrap_or_default());
    let Some(account) = UnixAccount::find(ACCOUNT, &passwd, &group) else { return Ok(None) };
    let looked = thread::scope(|scope| scope.spawn(|| account.take_on().map(|()| look())).join());
    looked.unwrap_or_else(|_| Err(std::io::Error::other("the look as another account failed"))).map(Some)
}

impl UnixAccount {
    /// As passwd(5) and group(5) have it.
    fn find(name: &str, passwd: &str, groups: &str) -> Option<Self> {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut numbers = line.split(':').skip(2).map(str::parse);
        let (user, group) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        let has_member = |line: &&str| {
            let members = line.split(':').nth(3).unwrap_or_default();
            members.split(',').any(|member| member == name)
        };
        let others =
            groups.lines().filter(has_member).filter_map(|line| line.split(':').nth(2)?.parse().ok());
        Some(Self { user, group, others: others.collect() })
    }

    /// For this thread alone, and without a way back (credentials(7)); the groups first, which only root may set.
    fn take_on(&self) -> std::io::Result<()> {
        let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.group));
        let others: Vec<_> = self.others.iter().copied().map(Gid::from_raw).collect();
        set_thread_groups(&others)?;
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)?;
        Ok(())
    }
}

/// The advice for a problem that only this account has.
pub(super) fn advice() -> String {
    format!(
        "(for {ACCOUNT}, the account that the service runs as; `chgrp {ACCOUNT} FILE; chmod g+r FILE` lets it read)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_its_own_group_and_those_that_name_it() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\ndcv-splice:x:991:992::/nowhere:/bin/false\n";
        let groups = "ssl-cert:x:110:ann,dcv-splice\ndcv-splice:x:992:\nothers:x:5:dcv-splice2,bob\n";
        let account = UnixAccount { user: 991, group: 992, others: vec![110] };
        assert_eq!(UnixAccount::find("dcv-splice", passwd, groups), Some(account));
        assert_eq!(UnixAccount::find("dcv", passwd, groups), None);
        assert_eq!(UnixAccount::find("x", "x:x:bad:1::/:/\n", ""), None);
    }
}
