use std::net::{Ipv4Addr, SocketAddr};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// A stretch of network between two servers that a test can break.
pub(crate) struct Link {
    addr: SocketAddr,
    state: watch::Sender<State>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    /// Connections stay, and nothing comes through.
    Hanging,
    /// Connections end, and so do new ones.
    Cut,
}

impl Link {
    /// To `target`, up.
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (state, seen) = watch::channel(State::Up);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(carry(stream, target, seen.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { addr, state, _task: AbortOnDropHandle::new(task) }
    }

    /// Its near end.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on nothing comes through.
    pub(crate) fn hang(&self) {
        self.state.send_replace(State::Hanging);
    }

    /// From now on there is no connection.
    pub(crate) fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// New connections come through again.
    pub(crate) fn restore(&self) {
        self.state.send_replace(State::Up);
    }
}

async fn carry(mut near: TcpStream, target: SocketAddr, mut state: watch::Receiver<State>) {
    let now = *state.borrow_and_update();
    match now {
        State::Up => {}
        State::Cut => return,
        State::Hanging => return std::future::pending().await,
    }
    let Ok(mut far) = TcpStream::connect(target).await else { return };
    let changed = tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => return,
        changed = state.wait_for(|state| *state != State::Up) => changed.map(|state| *state),
    };
    if matches!(changed, Ok(State::Hanging)) {
        // What hung does not come back.
        std::future::pending().await
    }
}
